"""For authors of backends: contract suites. Nothing of amistore imports it."""
