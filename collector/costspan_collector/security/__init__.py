"""Who may do what, and what of what they send is kept."""
