"""Tools that this service runs itself: those of the MCP servers that the operator names in the application file."""
