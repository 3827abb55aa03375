//! The namespace of an id that is given on the command line: what its queue's configuration says.

use crate::identity::Scope;
use crate::store::InspectScope;
use crate::worker::config::Config;

/// The scope of a queue's ids; a queue that is not configured is taken by its name at the broker.
pub(super) fn scope<'a>(
    config: &'a Config,
    name: &'a str,
    tenant: Option<&'a str>,
) -> Result<InspectScope<'a>, String> {
    let Some(queue) = config.queues.iter().find(|queue| queue.name == name) else {
        return Ok(match tenant {
            Some(tenant) => InspectScope::Tenant(tenant.as_bytes()),
            None => InspectScope::Queue(name),
        });
    };
    match (&queue.options.identity.scope, tenant) {
        (Scope::Queue, None) => Ok(InspectScope::Queue(&queue.options.queue)),
        (Scope::Global, None) => Ok(InspectScope::Global),
        (Scope::Header(_), Some(tenant)) => Ok(InspectScope::Tenant(tenant.as_bytes())),
        (Scope::Header(header), None) => {
            Err(format!("ids of {name} are scoped by header {header}: give --tenant"))
        }
        (Scope::Queue | Scope::Global, Some(_)) => {
            Err(format!("ids of {name} are not scoped by tenant: leave --tenant out"))
        }
    }
}

/// The name of a queue at the broker.
pub(super) fn broker_name<'a>(config: &'a Config, name: &'a str) -> &'a str {
    let queue = config.queues.iter().find(|queue| queue.name == name);
    queue.map_or(name, |queue| &queue.options.queue)
}
