"""Tillpost tracker: typed events and transactions, from the call to the collector's disk.

How it is laid out, in the order a record travels:

* errors, checks, money, clients, params: single values and their rules
* rules: what an annotation demands of a value
* record, events, transactions: what is tracked, checked where it is made
* custom: events of your own, declared as classes; catalogue: a page about them for colleagues
* privacy: hooks before a record is stamped
* salt, time, stamp: a record gets its salt and time and is encoded, once
* tracker: the facade; receipt: what it gives back
* bound: the client of the current request; integrations: frameworks that bind it
* waiting: what waits in memory; sender: one background thread per target; transport, http: how it reaches the collector
* process: forks and the end of the process
* wire: what tracker and collector must agree on
* testing: what your tests need
"""

from tracker import events
from tracker.bound import BoundTracker, bound_client
from tracker.checks import Source
from tracker.clients import Client
from tracker.custom import CustomEvent
from tracker.errors import InvalidRecord, MissingArgument
from tracker.money import Money
from tracker.receipt import Counters, Failure, Receipt
from tracker.salt import derive as derive_salt
from tracker.tracker import Tracker
from tracker.transactions import Product, Transaction

__all__ = [
    "BoundTracker",
    "Client",
    "Counters",
    "CustomEvent",
    "Failure",
    "InvalidRecord",
    "MissingArgument",
    "Money",
    "Product",
    "Receipt",
    "Source",
    "Tracker",
    "Transaction",
    "bound_client",
    "derive_salt",
    "events",
]
