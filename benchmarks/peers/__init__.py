"""The libraries people use today, and Tillpost, all sending the same events to the same sink.

events.py     the event: product.addedToCart with eleven properties, and a basket
libraries.py  a session for each library: how it is opened, called and flushed
tillpost.py   the same for Tillpost, beside a sidecar and embedded
syslog_ng.py  the same for syslog-ng with its reliable disk buffer, where it is installed
sink.py       the sink, which speaks to all of them and knows each event by its number
catalogue.py  who is compared: settings to try, and what each promises
"""
