//! Stored sessions over gRPC: HTTP's answers, in the wire's messages.

use proto::chat::v1::{
    ClearSessionRequest, ClearSessionResponse, GetHistoryRequest, GetHistoryResponse,
    GetSessionMessagesRequest, GetSessionMessagesResponse, GetSessionRequest, GetSessionResponse,
    ListSessionsRequest, ListSessionsResponse,
};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::{passed, status};
use crate::convert;
use crate::exchange::{Chat, SessionAnswer, SessionAsk};
use crate::front::{Shared, sessions};
use crate::sessions::PageOf;

type Answer<T> = Result<Response<T>, Status>;

pub(super) async fn get<C: Chat>(
    shared: &Shared<C>,
    request: Request<GetSessionRequest>,
) -> Answer<GetSessionResponse> {
    let (metadata, _, asked) = request.into_parts();
    let ask = SessionAsk::Get(asked.session_id);
    let SessionAnswer::One(info) = ask_for(shared, &metadata, asked.user_id, ask).await? else {
        return Err(other_answer());
    };
    let session = Some(convert::session_said(&info));
    Ok(Response::new(GetSessionResponse { session }))
}

pub(super) async fn list<C: Chat>(
    shared: &Shared<C>,
    request: Request<ListSessionsRequest>,
) -> Answer<ListSessionsResponse> {
    let (metadata, _, asked) = request.into_parts();
    let ask = SessionAsk::List(page(asked.page, asked.page_size)?);
    let SessionAnswer::List(list) = ask_for(shared, &metadata, asked.user_id, ask).await? else {
        return Err(other_answer());
    };
    let sessions = list.items.iter().map(convert::session_said).collect();
    Ok(Response::new(ListSessionsResponse { sessions, total: list.total }))
}

pub(super) async fn clear<C: Chat>(
    shared: &Shared<C>,
    request: Request<ClearSessionRequest>,
) -> Answer<ClearSessionResponse> {
    let (metadata, _, asked) = request.into_parts();
    let ask = match asked.purge {
        true => SessionAsk::Purge(asked.session_id),
        false => SessionAsk::Clear(asked.session_id),
    };
    ask_for(shared, &metadata, asked.user_id, ask).await?;
    Ok(Response::new(ClearSessionResponse {}))
}

pub(super) async fn messages<C: Chat>(
    shared: &Shared<C>,
    request: Request<GetSessionMessagesRequest>,
) -> Answer<GetSessionMessagesResponse> {
    let (metadata, _, asked) = request.into_parts();
    let page = page(asked.page, asked.page_size)?;
    let ask = SessionAsk::Messages(asked.session_id, page);
    let SessionAnswer::Messages(list) = ask_for(shared, &metadata, asked.user_id, ask).await?
    else {
        return Err(other_answer());
    };
    let messages = list.items.iter().map(convert::message_said).collect();
    Ok(Response::new(GetSessionMessagesResponse { messages, total: list.total }))
}

pub(super) async fn history<C: Chat>(
    shared: &Shared<C>,
    request: Request<GetHistoryRequest>,
) -> Answer<GetHistoryResponse> {
    let (metadata, _, asked) = request.into_parts();
    let SessionAnswer::History(lines) =
        ask_for(shared, &metadata, asked.user_id, SessionAsk::History).await?
    else {
        return Err(other_answer());
    };
    let lines = lines.iter().map(convert::line_said).collect();
    Ok(Response::new(GetHistoryResponse { lines }))
}

async fn ask_for<C: Chat>(
    shared: &Shared<C>,
    metadata: &MetadataMap,
    user: String,
    ask: SessionAsk,
) -> Result<SessionAnswer, Status> {
    let user = Some(user).filter(|user| !user.is_empty());
    let asked = sessions::asked(shared, &passed(metadata), user, ask).await;
    asked.map_err(|error| status::of_error(&error))
}

/// A number that is not said is 0.
fn page(page: u32, size: u32) -> Result<PageOf, Status> {
    let said = |number: u32| Some(u64::from(number)).filter(|number| *number > 0);
    sessions::page_of(said(page), said(size)).map_err(|error| status::of_error(&error))
}

fn other_answer() -> Status {
    status::of_error(&sessions::other_answer())
}
