"""What an operator looks after: keys, metrics, health, deadlines and flow control."""
