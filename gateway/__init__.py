"""The web edge: what mailbox providers, recipients and sending providers reach from outside."""
