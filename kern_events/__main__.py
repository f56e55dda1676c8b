"""`python -m kern_events` is `kern-events`."""

from kern_events.cli import main

if __name__ == "__main__":
    main()
