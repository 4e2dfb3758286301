"""Pure maths on arrays and parameter declarations. Layers know axes by logical name only."""
