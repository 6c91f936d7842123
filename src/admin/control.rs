//! The control API: lets operators inspect the service and change what it does.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tonic::{
    Request, Response, Status, async_trait, codegen::tokio_stream::wrappers::ReceiverStream,
};

use super::{Admin, watching::Watching};
use crate::{
    control::{
        Diagnostic, ExplainRequest, ExplainResponse, GetStatusRequest, GetStatusResponse,
        RecordRequest, RecordResponse, ReloadRequest, ReloadResponse, TryPoliciesRequest,
        TryPoliciesResponse, WatchDecisionsRequest, control_server::Control, diagnostic::Severity,
    },
    reload::{Refused, Reloaded, describe},
    supervise::Task,
    trace::TraceId,
};

/// The full name of the service, as health checks name it.
pub(crate) const CONTROL_SERVICE: &str = "tailwater.control.v1.Control";

/// Serves the control API.
#[derive(Clone, Debug)]
pub(super) struct ControlService(pub(super) Arc<Admin>);

#[async_trait]
impl Control for ControlService {
    type WatchDecisionsStream = Watching;
    type TryPoliciesStream = ReceiverStream<Result<TryPoliciesResponse, Status>>;
    type RecordStream = ReceiverStream<Result<RecordResponse, Status>>;

    async fn get_status(
        &self,
        _request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        Ok(Response::new(self.0.status()))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let Some(trace_id) = TraceId::from_pasted(&request.get_ref().trace_id) else {
            return Err(Status::invalid_argument(TRACE_ID_FORMS));
        };
        let decision = self.0.explain(trace_id);
        let decision = decision.ok_or_else(|| Status::not_found(UNKNOWN_TRACE))?;
        Ok(Response::new(ExplainResponse { decision: Some(decision) }))
    }

    async fn watch_decisions(
        &self,
        request: Request<WatchDecisionsRequest>,
    ) -> Result<Response<Watching>, Status> {
        let (watching, long_lived) = self.0.watch(request.get_ref())?;
        let mut response = Response::new(watching);
        response.extensions_mut().insert(long_lived);
        Ok(response)
    }

    async fn try_policies(
        &self,
        request: Request<TryPoliciesRequest>,
    ) -> Result<Response<Self::TryPoliciesStream>, Status> {
        let responses = self.0.try_policies(request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn record(
        &self,
        request: Request<RecordRequest>,
    ) -> Result<Response<Self::RecordStream>, Status> {
        let responses = self.0.record(request.get_ref())?;
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn reload(
        &self,
        _request: Request<ReloadRequest>,
    ) -> Result<Response<ReloadResponse>, Status> {
        self.0.permit_lifecycle()?;
        let answer = match self.0.run_reload().await {
            Ok(reloaded) => {
                ReloadResponse { reloaded: true, diagnostics: describe(&reloaded.diagnostics) }
            }
            Err(Refused::Invalid(diagnostics)) => {
                ReloadResponse { reloaded: false, diagnostics: describe(&diagnostics) }
            }
            Err(refused @ Refused::TooManyNames(_)) => {
                let message = refused.to_string();
                let severity = Severity::Error.into();
                let diagnostic = Diagnostic { message, severity, ..Diagnostic::default() };
                ReloadResponse { reloaded: false, diagnostics: vec![diagnostic] }
            }
            Err(refused @ Refused::Panicked) => return Err(Status::internal(refused.to_string())),
        };
        Ok(Response::new(answer))
    }
}

/// The error for a trace id in another form.
pub(super) const TRACE_ID_FORMS: &str =
    "a trace id is up to 32 hexadecimal digits, or a UUID, and not zero";
pub(super) const UNKNOWN_TRACE: &str = "unknown or no longer remembered";

impl Admin {
    /// Checks that clients may change what the service does.
    pub(super) fn permit_lifecycle(&self) -> Result<(), Status> {
        if self.enable_lifecycle {
            return Ok(());
        }
        let message =
            "set `enable_lifecycle = true` in [telemetry] to allow this; SIGHUP always reloads";
        Err(Status::permission_denied(message))
    }

    /// Reloads the policies on the reload thread.
    pub(super) async fn run_reload(&self) -> Result<Reloaded, Refused> {
        let reload = Arc::clone(&self.reload);
        spawn_blocking(move || reload.run()).await.unwrap_or_else(|_| {
            self.supervisor.panicked(Task::Reload);
            Err(Refused::Panicked)
        })
    }
}
