//! Spans of requests and of the work that the state machine requests for them.
//!
//! Work does not say which request it is for. It belongs to the last open request about the same process that asks for such
//! work; work that undoes something, to the last open request of any kind.

use lifecycle::{Reply, Request, Work};
use trace::{Kind, Place, Span};

use crate::sandbox::records::process::ProcessName;

#[derive(Default)]
pub(in crate::sandbox) struct OpenRequests(Vec<Open>);

struct Open {
    reply: Reply,
    request: Request,
    name: ProcessName,
    place: Place,
}

impl OpenRequests {
    pub(in crate::sandbox) fn begin(&mut self, reply: Reply, request: &Request, name: ProcessName, place: Place) {
        self.0.push(Open {
            reply,
            request: request.clone(),
            name,
            place,
        });
    }

    pub(in crate::sandbox) fn end(&mut self, reply: Reply) {
        self.0.retain(|open| open.reply != reply);
    }

    /// The span of work about a process; None: no request that is traced has asked for it.
    pub(in crate::sandbox) fn span(&self, work: &Work) -> Option<Span> {
        if self.0.is_empty() {
            return None;
        }
        let name = work.subject()?;
        let of_it = || self.0.iter().rev().filter(|open| open.name == name);
        let open = of_it()
            .find(|open| asks_for(&open.request, work))
            .or_else(|| of_it().next())?;
        Some(open.place.start(name_of(work), Kind::Internal))
    }
}

fn asks_for(request: &Request, work: &Work) -> bool {
    match work {
        Work::Attach(_) | Work::CreateHooks(_) | Work::Provision(_) | Work::GuestCreate(_) | Work::Connect(_) => {
            matches!(request, Request::Create(_))
        }
        Work::Network(_)
        | Work::GuestStart(_)
        | Work::StartHooks(_)
        | Work::OpenStreams(_)
        | Work::GuestExec(_)
        | Work::ConnectExec(_) => matches!(request, Request::Start(_)),
        Work::Signal { .. } => matches!(request, Request::Kill { .. }),
        Work::GuestPause(_) => matches!(request, Request::Pause(_)),
        Work::GuestResume(_) => matches!(request, Request::Resume(_)),
        Work::Update(..) => matches!(request, Request::Update(_)),
        Work::GuestDelete(_) | Work::ReleaseDisks(_) | Work::Detach(_) | Work::StopHooks(_) => {
            matches!(request, Request::Delete(_))
        }
        Work::Ping | Work::FinishStreams(..) => false,
    }
}

fn name_of(work: &Work) -> &'static str {
    match work {
        Work::Attach(_) => "attach",
        Work::CreateHooks(_) => "create hooks",
        Work::Provision(_) => "provision",
        Work::GuestCreate(_) => "create in guest",
        Work::Connect(_) | Work::ConnectExec(_) => "connect streams",
        Work::Network(_) => "follow network",
        Work::GuestStart(_) => "start in guest",
        Work::StartHooks(_) => "start hooks",
        Work::OpenStreams(_) => "open streams",
        Work::GuestExec(_) => "exec in guest",
        Work::Signal { .. } => "signal in guest",
        Work::Ping => "ping",
        Work::GuestPause(_) => "pause in guest",
        Work::GuestResume(_) => "resume in guest",
        Work::Update(..) => "update",
        Work::GuestDelete(_) => "delete in guest",
        Work::ReleaseDisks(_) => "release disks",
        Work::Detach(_) => "detach",
        Work::StopHooks(_) => "stop hooks",
        Work::FinishStreams(..) => "finish streams",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::id::ContainerId;
    use trace::{Context, Record};

    fn names(spans: &Mutex<Vec<Record>>) -> Vec<(String, Option<Context>)> {
        let spans = spans.lock().unwrap();
        spans.iter().map(|span| (span.name.clone(), span.parent)).collect()
    }

    #[test]
    fn work_belongs_to_the_request_that_asks_for_it_whatever_came_between() {
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        let root = Place::new(Context::root(), true, move |span| kept.lock().unwrap().push(span));
        let id = ContainerId::new("c").unwrap();
        let name = ProcessName::init(id.clone());
        let (create, kill) = (root.start("Create", Kind::Server), root.start("Kill", Kind::Server));
        let mut open = OpenRequests::default();
        open.begin(Reply(1), &Request::Create(id.clone()), name.clone(), create.place());
        let request = Request::Kill {
            name: name.clone(),
            signal: 9,
            all: true,
        };
        open.begin(Reply(2), &request, name.clone(), kill.place());
        open.span(&Work::GuestCreate(id.clone())).unwrap().end(None);
        // What undoes the creation.
        open.end(Reply(2));
        open.span(&Work::Detach(id.clone())).unwrap().end(None);
        let (of_create, other) = (Some(create.place().context()), ContainerId::new("d").unwrap());
        assert_eq!(
            names(&spans),
            [
                ("create in guest".to_owned(), of_create),
                ("detach".to_owned(), of_create)
            ]
        );
        assert!(open.span(&Work::Attach(other)).is_none());
        open.end(Reply(1));
        assert!(open.span(&Work::Detach(id)).is_none());
    }
}
