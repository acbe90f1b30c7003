"""What a gateway can work out beforehand: durations, rewards, laws of lengths, least charges. NumPy only."""
