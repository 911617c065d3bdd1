//! Asks the hub before hf-hub downloads: what there is, and what a file's answer is like. hf-hub
//! itself would panic on some answers, and hides the status of all.

use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use super::access::Hub;
use super::names::RemoteFile;
use super::problem::FetchProblem;
use crate::error::Cause;
use crate::resolve::ModelPlaces;

/// An answer without a file in it takes no longer.
const MAX_ANSWER_TIME: Duration = Duration::from_mins(1);

/// The hub sends on to where a model is called now, and from there at most to storage.
const MAX_REDIRECTS: usize = 5;

/// One model on the hub.
pub(super) struct Client<'a> {
    model: &'a str,
    hub: &'a Hub,
    has_token: bool,
    api: Api,
}

/// The part we need of the hub's description of a model.
#[derive(Deserialize)]
pub(super) struct Listing {
    /// The commit.
    pub(super) sha: String,
    #[serde(rename = "siblings")]
    pub(super) files: Vec<RemoteFile>,
}

/// What the hub says of a file before it gives it.
#[derive(Debug)]
pub(super) struct Promise {
    /// The name of the content, and of its file among the cache's `blobs`.
    pub(super) etag: String,
    /// In bytes.
    pub(super) size: Option<u64>,
}

impl<'a> Client<'a> {
    /// # Errors
    /// The user wants no network.
    pub(super) fn new(model: &'a str, places: &'a ModelPlaces) -> Result<Self, FetchProblem> {
        let hub = &places.hub;
        if hub.is_offline {
            return Err(FetchProblem::Offline);
        }
        let token = hub.find_token();
        let has_token = token.is_some();
        let api = ApiBuilder::from_cache(Cache::new(places.hugging_face.clone()))
            .with_endpoint(hub.endpoint.clone())
            .with_token(token)
            .with_user_agent("pagemill", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| FetchProblem::Unreachable {
                endpoint: hub.endpoint.clone(),
                source: Box::new(error),
            })?;
        Ok(Self {
            model,
            hub,
            has_token,
            api,
        })
    }

    /// The model at a branch, a tag or a commit.
    pub(super) fn repo(&self, revision: &str) -> ApiRepo {
        let (model, revision) = (self.model.to_owned(), revision.to_owned());
        self.api
            .repo(Repo::with_revision(model, RepoType::Model, revision))
    }

    /// What the model consists of at a revision, and which commit that is.
    pub(super) fn list(&self, revision: &str) -> Result<Listing, FetchProblem> {
        const WHAT: &str = "the list of its files";
        let request = self.repo(revision).info_request().query("blobs", "true");
        let request = request
            .config()
            .http_status_as_error(false)
            .timeout_global(Some(MAX_ANSWER_TIME))
            .build();
        let answer = request.call();
        let mut answer = answer.map_err(|error| self.unreachable(Box::new(error)))?;
        let status = answer.status().as_u16();
        if status != 200 {
            let code = answer.headers().get("x-error-code");
            let code = code.and_then(|code| code.to_str().ok());
            return Err(match (status, code) {
                (404, Some("RevisionNotFound")) => self.unknown_revision(revision),
                (404, None) if revision != "main" => self.unknown_revision(revision),
                (404, _) => FetchProblem::UnknownModel {
                    endpoint: self.hub.endpoint.clone(),
                },
                _ => self.refused(status, code, WHAT),
            });
        }
        let body = answer.body_mut().read_to_vec();
        let body = body.map_err(|error| self.unreachable(Box::new(error)))?;
        let listing: Listing = serde_json::from_slice(&body)
            .map_err(|error| self.nonsense(WHAT, format!("malformed JSON: {error}")))?;
        // It becomes a folder's name.
        if !is_token(&listing.sha) {
            let problem = format!("`{}` is no commit", listing.sha.escape_debug());
            return Err(self.nonsense(WHAT, problem));
        }
        Ok(listing)
    }

    /// Asks for the first byte of a file at a commit, as hf-hub will.
    pub(super) fn ask(&self, commit: &str, file: &str) -> Result<Promise, FetchProblem> {
        let what = format!("`{file}`");
        let repo = self.repo(commit);
        let mut address = repo.url(file);
        for _ in 0..MAX_REDIRECTS {
            let request = repo
                .info_request()
                .uri(&address)
                .header("Range", "bytes=0-0");
            let request = request
                .config()
                .http_status_as_error(false)
                .max_redirects(0)
                .timeout_global(Some(MAX_ANSWER_TIME))
                .build();
            let answer = request.call();
            let answer = answer.map_err(|error| self.unreachable(Box::new(error)))?;
            let header = |name: &str| {
                let value = answer.headers().get(name)?;
                Some(value.to_str().ok()?.to_owned())
            };
            let location = match answer.status().as_u16() {
                200 | 206 => None,
                301 | 302 | 303 | 307 | 308 => Some(
                    header("location")
                        .ok_or_else(|| self.nonsense(&what, "a redirect to nowhere".into()))?,
                ),
                status => {
                    return Err(self.refused(status, header("x-error-code").as_deref(), &what));
                }
            };
            if let Some(path) = location.filter(|location| location.starts_with('/')) {
                address = format!("{}{path}", origin(&address));
                continue;
            }
            let etag = header("x-linked-etag").or_else(|| header("etag"));
            let etag = etag.unwrap_or_default().replace('"', "");
            // Weak ones begin with `W/`, which hf-hub makes a folder.
            if !is_token(etag.strip_prefix("W/").unwrap_or(&etag)) {
                return Err(self.nonsense(&what, "no etag".into()));
            }
            // hf-hub puts the file where this header says.
            if header("x-repo-commit").as_deref() != Some(commit) {
                return Err(self.nonsense(&what, format!("no `x-repo-commit: {commit}`")));
            }
            let size = header("x-linked-size").or_else(|| {
                let range = header("content-range")?;
                Some(range.rsplit_once('/')?.1.to_owned())
            });
            let size = size.and_then(|size| size.parse().ok());
            return Ok(Promise { etag, size });
        }
        Err(self.nonsense(&what, "redirects without end".into()))
    }

    pub(super) fn unreachable(&self, source: Cause) -> FetchProblem {
        FetchProblem::Unreachable {
            endpoint: self.hub.endpoint.clone(),
            source,
        }
    }

    pub(super) fn nonsense(&self, what: &str, problem: String) -> FetchProblem {
        FetchProblem::Nonsense {
            what: what.to_owned(),
            problem,
            endpoint: self.hub.endpoint.clone(),
        }
    }

    fn unknown_revision(&self, revision: &str) -> FetchProblem {
        FetchProblem::UnknownRevision {
            revision: revision.to_owned(),
            page: self.page(),
        }
    }

    fn refused(&self, status: u16, code: Option<&str>, what: &str) -> FetchProblem {
        if !matches!(status, 401 | 403) {
            return FetchProblem::Status {
                what: what.to_owned(),
                status,
                endpoint: self.hub.endpoint.clone(),
            };
        }
        FetchProblem::Denied {
            page: self.page(),
            is_gated: code == Some("GatedRepo"),
            has_token: self.has_token,
            status,
        }
    }

    fn page(&self) -> String {
        format!("{}/{}", self.hub.endpoint, self.model)
    }
}

/// Whether a text is a hash or the like, and so no path to anywhere.
fn is_token(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    !text.is_empty() && text.len() <= 128 && text.bytes().all(is_plain)
}

/// `https://host:port` of an address.
fn origin(address: &str) -> &str {
    let host = address.find("://").map_or(0, |at| at + 3);
    let end = address[host..].find('/');
    &address[..end.map_or(address.len(), |end| host + end)]
}
