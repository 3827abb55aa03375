//! The table `[http]`: where metrics and health are, and what whoever asks must show.
//!
//! Without a token only this machine may ask.

use std::net::SocketAddr;

use super::read::Section;
use super::secret_file::{SecretFile, Secrets};
use super::tree::Node;
use super::values;

pub(super) fn read(mut section: Section<'_>, secrets: &mut Secrets) -> Option<SocketAddr> {
    let listen = section.read("listen", listen_address);
    secrets.http_token = SecretFile::read(&mut section, "token_file");
    if let Some(Some(address)) = listen
        && !address.ip().is_loopback()
        && secrets.http_token.is_none()
    {
        section.error(
            "listen",
            format!(
                "\"{address}\" can be reached from other machines, and nothing there asks for a password: write \
                 \"127.0.0.1:{}\", or name in token_file a file with a token that is to be shown",
                address.port()
            ),
        );
    }
    section.finish();
    listen.unwrap_or_else(|| Some(SocketAddr::from(([127, 0, 0, 1], 9464))))
}

fn listen_address(node: &Node) -> Result<Option<SocketAddr>, String> {
    let text = values::string(node)?;
    if text.is_empty() {
        return Ok(None);
    }
    let Ok(address) = text.parse::<SocketAddr>() else {
        let wanted = r#"write for example "127.0.0.1:9464", or "" for none"#;
        return Err(format!("{text:?} is not an address and a port; {wanted}"));
    };
    Ok(Some(address))
}
