"""Training: objectives, gradients, the step and the loop around it."""
