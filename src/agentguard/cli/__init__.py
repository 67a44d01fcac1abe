"""The command line ``agentguard``, a folder for each group; ``commands.py`` lists the commands."""
