"""What is wrong with a policy: routers where tables are wrong, views are late, and requests differ from training."""
