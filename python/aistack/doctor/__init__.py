"""What `aistack doctor` looks at: one module an area, each check a function of the host that returns its findings."""
