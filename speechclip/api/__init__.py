"""The Python interface: every step of the command line as one function. `import speechclip` offers all of them."""
