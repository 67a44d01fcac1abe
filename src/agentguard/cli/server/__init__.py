"""The commands of the guard server: ``agentguard serve`` and ``agentguard server``."""
