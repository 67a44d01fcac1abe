"""The commands of the MCP gateway: ``agentguard mcp``."""
