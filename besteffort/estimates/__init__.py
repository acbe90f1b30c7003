"""What a gateway can know when a request arrives, and what follows from it for each model. NumPy only."""
