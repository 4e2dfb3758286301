"""Training of less than all parameters: what is trained, and how it joins the rest."""
