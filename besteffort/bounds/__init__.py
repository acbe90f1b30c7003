"""What no router can exceed: the fluid and the clairvoyant bound, and the gear plan that follows from the first."""
