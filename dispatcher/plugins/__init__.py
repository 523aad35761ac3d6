"""What a plugin is written against: handlers, outcomes, context, services and senders; and how plugins are found."""
