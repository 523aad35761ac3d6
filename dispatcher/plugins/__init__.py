"""What a plugin is written against: handlers, outcomes, the context, services and senders; and how plugins are found."""
