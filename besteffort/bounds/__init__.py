"""Upper bounds for any router: the fluid and the clairvoyant bound, and the gear plan that the fluid one yields."""
