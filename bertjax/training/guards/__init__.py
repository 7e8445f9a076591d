"""What a training step checks, on the devices, before it changes the parameters."""
