"""The organisation's token issuers: their keys from files or over HTTP, and tokens of their own."""
