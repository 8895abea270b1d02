"""Tables, figures and the README's numbers, made from files alone; nothing here imports torch."""
