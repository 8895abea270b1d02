"""Python that the workflow calls outside the package."""
