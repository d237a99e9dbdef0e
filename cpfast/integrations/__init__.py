"""cpfast in other people's trainers: one module each, which imports that trainer."""
