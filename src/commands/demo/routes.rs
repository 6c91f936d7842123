//! The shop's three routes as tables: which service does what for which caller, and when.
//!
//! The times of a step are in thousandths of its root's duration. A step that follows a message may
//! end after the root, as in real traces: the longest trace lasts [`END_MAX`] thousandths of its
//! root.

use Does::{Cache, Call, Consume, Publish, Query, Serve};
use Service::{Cart, Gateway, Inventory, Notification, Payment, Shipping};

/// A service of the shop. Each has a resource and an exporter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Gateway = 0,
    Cart = 1,
    Inventory = 2,
    Payment = 3,
    Notification = 4,
    Shipping = 5,
}

impl Service {
    /// Every service, in the order of its number.
    pub(super) const ALL: [Service; 6] =
        [Gateway, Cart, Inventory, Payment, Notification, Shipping];

    /// The value of `service.name`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Gateway => "gateway",
            Cart => "cart",
            Inventory => "inventory",
            Payment => "payment",
            Notification => "notification",
            Shipping => "shipping",
        }
    }
}

/// The operation that a span stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// Answers a request: method and route.
    Serve(&'static str, &'static str),
    /// Makes a request: method, host and path.
    Call(&'static str, &'static str, &'static str),
    /// Queries the database: operation and table.
    Query(&'static str, &'static str),
    /// Queries the cache: command.
    Cache(&'static str),
    /// Sends a message to a topic.
    Publish(&'static str),
    /// Processes a message from a topic.
    Consume(&'static str),
}

/// One span of a route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) service: Service,
    pub(super) does: Does,
    /// The position of the parent in the route, which is an earlier one. `None` for the root.
    pub(super) parent: Option<usize>,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Step {
    /// Whether errors can begin at this step: only at the edges of the shop, not in between.
    pub(super) fn can_fail(&self) -> bool {
        match self.does {
            Query(..) | Cache(..) => true,
            Call(_, host, _) => host.contains('.'),
            Serve(..) | Publish(..) | Consume(..) => false,
        }
    }
}

/// The longest duration of a trace, in thousandths of its root.
pub(super) const END_MAX: u64 = 1200;

const fn root(does: Does) -> Step {
    Step { service: Gateway, does, parent: None, start: 0, end: 1000 }
}

const fn step(parent: usize, service: Service, does: Does, start: u64, end: u64) -> Step {
    Step { service, does, parent: Some(parent), start, end }
}

const BROWSE: &[Step] = &[
    root(Serve("GET", "/api/products")),
    step(0, Gateway, Call("GET", "inventory", "/products"), 60, 900),
    step(1, Inventory, Serve("GET", "/products"), 100, 850),
    step(2, Inventory, Cache("GET"), 150, 250),
    step(2, Inventory, Query("SELECT", "products"), 300, 750),
];

const ADD_TO_CART: &[Step] = &[
    root(Serve("POST", "/api/cart")),
    step(0, Gateway, Call("POST", "cart", "/items"), 50, 950),
    step(1, Cart, Serve("POST", "/items"), 80, 920),
    step(2, Cart, Cache("GET"), 100, 180),
    step(2, Cart, Call("POST", "inventory", "/reservations"), 200, 800),
    step(4, Inventory, Serve("POST", "/reservations"), 240, 760),
    step(5, Inventory, Query("UPDATE", "stock"), 300, 700),
    step(2, Cart, Cache("SET"), 820, 900),
];

const CHECKOUT: &[Step] = &[
    root(Serve("POST", "/api/checkout")),
    step(0, Gateway, Call("GET", "cart", "/items"), 30, 180),
    step(1, Cart, Serve("GET", "/items"), 40, 170),
    step(2, Cart, Cache("GET"), 60, 150),
    step(0, Gateway, Call("POST", "payment", "/charges"), 200, 900),
    step(4, Payment, Serve("POST", "/charges"), 220, 880),
    step(5, Payment, Call("POST", "cards.example.com", "/v2/authorize"), 250, 700),
    step(5, Payment, Query("INSERT", "charges"), 720, 850),
    step(0, Gateway, Publish("orders"), 920, 970),
    step(8, Shipping, Consume("orders"), 980, 1150),
    step(9, Shipping, Query("INSERT", "parcels"), 1000, 1120),
    step(8, Notification, Consume("orders"), 990, END_MAX),
    step(11, Notification, Call("POST", "mail.example.com", "/send"), 1010, 1180),
];

/// The routes, each with its share of the visits in per cent. A trace has eight spans on average.
pub(super) const ROUTES: [(u32, &[Step]); 3] = [(40, BROWSE), (35, ADD_TO_CART), (25, CHECKOUT)];
