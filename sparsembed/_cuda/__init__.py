"""The engine on a GPU: nothing here is imported before a device array shows up."""
