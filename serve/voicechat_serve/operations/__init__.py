"""Operation of the service: keys, metrics, health, deadlines and flow control."""
