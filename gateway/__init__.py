"""The web edge: what mailbox providers and recipients reach from outside."""
