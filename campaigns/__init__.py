"""What marketers write (campaign specs), and who it goes to (audiences)."""
