"""The demonstration: real customers of a gift shop, a rehearsal clock, a local SMTP sink and simulated recipients.

Nothing outside this folder and the `mailhouse demo` command may import it.
"""
