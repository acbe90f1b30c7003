"""The decisions and counts of the gateway inside gateways of others, each of which brings its own package."""
