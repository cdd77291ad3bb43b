"""Our applications on Serve, and where each answers; the Serve of a Ray that was joined may have others besides."""

API, FRONT = "api", "front"

APPLICATIONS = {API: "/v1", FRONT: "/"}
