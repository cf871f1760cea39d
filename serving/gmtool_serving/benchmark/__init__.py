"""Speed, memory and agreement of exported models, side by side."""
