"""Programs with a window: layout and wiring, the computing is done by the workbench."""
