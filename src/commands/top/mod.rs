//! `tailwater top`: shows the state of a running instance, live in the terminal.
//!
//! Asks for `GetStatus` once a second and draws the answer. If the instance stops answering, the
//! screen says so, and the command keeps asking until it is back. `view` holds the state and
//! handles keys, `draw` draws the screen; neither does any input or output. This module has the
//! terminal, the calls and the signals, on one thread. At most one status and one action of the
//! user are in progress at a time.
//!
//! The terminal is restored at every end: by a key, by a signal, by an error, and by the hook that
//! ratatui installs for panics.

mod draw;
#[cfg(test)]
mod tests;
mod view;

use std::{
    future::{pending, poll_fn},
    io::{self, IsTerminal as _},
    pin::Pin,
    time::Duration,
};

use clap::Args;
use crossterm::event::{Event, EventStream};
use futures_core::Stream as _;
use ratatui::DefaultTerminal;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval},
};
use tonic::{Code, Request};

use self::view::{Act, View};
use super::{
    complain, explain,
    instance::{self, Asked, Failure, Instance, soon},
};
use crate::{
    clock,
    control::{ExplainRequest, GetStatusRequest, GetStatusResponse, ReloadRequest, ReloadResponse},
};

/// The interval between two requests for the status.
const PERIOD: Duration = Duration::from_secs(1);
/// The time after which an instance that does not answer counts as away.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Options of `top`.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    instance: Instance,
}

/// The answer to a call.
enum Answer {
    Status(Result<Box<GetStatusResponse>, Failure>),
    Reload(Result<ReloadResponse, Failure>),
    /// A decision in sentences, or why there is no answer.
    Explain(Result<String, Failure>),
}

/// A call in progress.
type Call = Pin<Box<dyn Future<Output = Answer>>>;

/// Shows the instance until the user ends it. Returns whether there was no error.
pub fn run(options: &Options) -> bool {
    if !io::stdout().is_terminal() {
        complain(
            "error: `tailwater top` needs a terminal as its standard output; for scripts, \
             GET /-/status of the telemetry endpoint has the same figures as JSON\n",
        );
        return false;
    }
    instance::run(show(options))
}

async fn show(options: &Options) -> Result<bool, Failure> {
    let asked = options.instance.client()?;
    let mut signals = match [SignalKind::interrupt(), SignalKind::terminate()].map(signal) {
        [Ok(interrupt), Ok(terminate)] => [interrupt, terminate],
        [Err(problem), _] | [_, Err(problem)] => {
            complain(&format!("error: cannot listen for signals: {problem}\n"));
            return Ok(false);
        }
    };
    let Some(first) = first(asked.clone(), &mut signals).await? else { return Ok(true) };
    let mut view = View::new(asked.address(), first);
    let shown = async {
        let screen = Screen { terminal: ratatui::try_init()?, keys: EventStream::new() };
        follow(asked, &mut view, screen, signals).await
    };
    match shown.await {
        Ok(()) => Ok(true),
        Err(problem) => {
            complain(&format!("error: cannot use the terminal: {problem}\n"));
            Ok(false)
        }
    }
}

/// The first status; `None` if a signal ends the command before. It is requested before the screen
/// changes, so that a wrong address fails as in other commands.
async fn first(
    asked: Asked,
    [interrupt, terminate]: &mut [Signal; 2],
) -> Result<Option<GetStatusResponse>, Failure> {
    tokio::select! {
        // A request to stop comes first.
        biased;
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
        status = status(asked) => status.map(Some),
    }
}

/// Owns the terminal, and restores it when dropped.
struct Screen {
    terminal: DefaultTerminal,
    keys: EventStream,
}

impl Drop for Screen {
    fn drop(&mut self) {
        // After a panic, ratatui's hook has restored the terminal. Doing so again would move the
        // cursor back, and the shell would overwrite the message.
        if !std::thread::panicking() {
            ratatui::restore();
        }
    }
}

impl Screen {
    fn draw(&mut self, view: &mut View) -> io::Result<()> {
        let mut scrolled = 0;
        self.terminal.draw(|frame| {
            scrolled = draw::draw(frame, view, clock::unix_millis());
        })?;
        view.scrolled = scrolled;
        Ok(())
    }

    /// The next key or change of size; `None` when there is no more input.
    async fn event(&mut self) -> Option<io::Result<Event>> {
        poll_fn(|context| Pin::new(&mut self.keys).poll_next(context)).await
    }
}

/// Asks, draws and handles keys, until a key or a signal ends the command.
async fn follow(
    asked: Asked,
    view: &mut View,
    mut screen: Screen,
    mut signals: [Signal; 2],
) -> io::Result<()> {
    let began = Instant::now();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asking: Option<Call> = None;
    let mut acting: Option<Call> = None;
    let [interrupt, terminate] = &mut signals;
    loop {
        screen.draw(view)?;
        let answer = tokio::select! {
            // A request to stop comes first, then keys, so that they work while answers arrive.
            biased;
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            event = screen.event() => {
                let Some(event) = event.transpose()? else { return Ok(()) };
                match event.as_key_press_event().and_then(|key| view.press(key)) {
                    Some(Act::Quit) => return Ok(()),
                    Some(act) => acting = Some(call(asked.clone(), act)),
                    None => {}
                }
                continue;
            }
            answer = ended(&mut acting) => answer,
            answer = ended(&mut asking) => answer,
            _ = ticks.tick() => {
                if asking.is_none() {
                    let asked = asked.clone();
                    asking = Some(Box::pin(async {
                        Answer::Status(status(asked).await.map(Box::new))
                    }));
                }
                continue;
            }
        };
        match answer {
            Answer::Status(Ok(status)) => {
                view.heard(*status, began.elapsed(), clock::unix_millis());
            }
            Answer::Status(Err(failure)) => view.missed(&failure, clock::unix_millis()),
            Answer::Reload(outcome) => view.reloaded(outcome),
            Answer::Explain(outcome) => view.explained(outcome),
        }
    }
}

/// Waits for the end of a call, for ever if there is none. Safe to drop: the call continues later.
async fn ended(call: &mut Option<Call>) -> Answer {
    let Some(under_way) = call else { return pending().await };
    let answer = under_way.await;
    *call = None;
    answer
}

async fn status(mut asked: Asked) -> Result<GetStatusResponse, Failure> {
    let mut request = Request::new(GetStatusRequest {});
    request.set_timeout(STATUS_TIMEOUT);
    let answer = asked.client.get_status(request).await;
    answer.map(|answer| answer.into_inner()).map_err(|status| asked.failure(&status))
}

/// Starts the call for an action of the user.
fn call(mut asked: Asked, act: Act) -> Call {
    Box::pin(async move {
        let Act::LookUp(trace_id) = act else {
            let answer = asked.client.reload(soon(ReloadRequest {})).await;
            return Answer::Reload(match answer {
                Ok(answer) => Ok(answer.into_inner()),
                Err(status) => Err(asked.failure(&status)),
            });
        };
        Answer::Explain(match asked.client.explain(soon(ExplainRequest { trace_id })).await {
            Ok(answer) => {
                let decision = answer.into_inner().decision.unwrap_or_default();
                Ok(decision.explained(clock::unix_millis()))
            }
            Err(status) if status.code() == Code::NotFound => Ok(explain::UNKNOWN.to_owned()),
            Err(status) => Err(asked.failure(&status)),
        })
    })
}
