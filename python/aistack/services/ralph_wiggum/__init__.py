"""Ralph works on tasks in a loop: `app.py` puts it together, `engine.py` is the loop, `store.py` what is remembered."""
