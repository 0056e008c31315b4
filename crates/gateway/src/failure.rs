//! The client's failures as the S3 side says them. What may have happened stays unknown (C7); everything else has not.

use ashlar_client::Failure as Client;
use ashlar_s3::Failure;
use ashlar_types::{QueryRefusal, Refusal, RootRefusal, bug};

/// Whether the bucket that the gateway remembers may be another one by now.
pub(crate) fn is_stale_bucket(failure: &Client) -> bool {
    matches!(
        failure,
        Client::Refused(Refusal::BucketFenced | Refusal::BucketEpoch { .. })
            | Client::Query(QueryRefusal::BucketFenced | QueryRefusal::BucketEpoch { .. })
    )
}

/// See the module.
pub(crate) fn translate(failure: Client) -> Failure {
    match failure {
        Client::Refused(refusal) => refused(&refusal),
        Client::Query(refusal) => query(&refusal),
        Client::Root(refusal) => root(&refusal),
        Client::BucketExists(_) => Failure::BucketExists,
        Client::Unavailable { reason } => Failure::Unavailable(reason),
        Client::Unknown { reason } if bug!("unknown-is-refused") => Failure::Unavailable(reason),
        Client::Unknown { reason } => Failure::Unknown(reason),
        Client::NoSpace => Failure::NoSpace,
        lost @ (Client::Lost { .. } | Client::Corrupt { .. }) => {
            Failure::Internal(lost.to_string())
        }
        ours
        @ (Client::LengthRequired | Client::LengthDiffers { .. } | Client::Protocol { .. }) => {
            Failure::Internal(ours.to_string())
        }
    }
}

fn refused(refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::ConditionFailed => Failure::ConditionFailed,
        Refusal::NoSuchKey => Failure::NoSuchKey,
        Refusal::NoSuchUpload => Failure::NoSuchUpload,
        Refusal::PartsChanged | Refusal::ObjectChanged => Failure::Changed,
        Refusal::BucketFenced => Failure::BucketBusy,
        Refusal::BucketNotEmpty => Failure::BucketNotEmpty,
        // of a resend these say nothing about what the first send came to
        Refusal::SessionFenced | Refusal::Forgotten => Failure::Unknown(refusal.to_string()),
        Refusal::BucketEpoch { .. } | Refusal::Abandoned | Refusal::OutsideRange => {
            Failure::Unavailable(refusal.to_string())
        }
        Refusal::ForeignExtent
        | Refusal::Unsupported
        | Refusal::NotMissing
        | Refusal::ExtentChanged
        | Refusal::TooFewLeft
        | Refusal::SessionLives
        | Refusal::ExtentNamed
        | Refusal::Splitting
        | Refusal::NotPrepared
        | Refusal::BadSplitPoint
        | Refusal::MembersChanging => Failure::Internal(refusal.to_string()),
    }
}

fn query(refusal: &QueryRefusal) -> Failure {
    match refusal {
        QueryRefusal::NoSuchKey => Failure::NoSuchKey,
        QueryRefusal::NoSuchVersion => Failure::NoSuchVersion,
        QueryRefusal::DeleteMarker { version, modified_ms } => {
            Failure::DeleteMarker { version: *version, modified_ms: *modified_ms }
        }
        QueryRefusal::NoSuchUpload => Failure::NoSuchUpload,
        QueryRefusal::SpanOutside { size } => Failure::SpanOutside { size: *size },
        QueryRefusal::NoSuchPart => Failure::NoSuchPart,
        QueryRefusal::BucketFenced => Failure::BucketBusy,
        QueryRefusal::BucketEpoch { .. } | QueryRefusal::OutsideRange => {
            Failure::Unavailable(refusal.to_string())
        }
    }
}

fn root(refusal: &RootRefusal) -> Failure {
    match refusal {
        RootRefusal::BucketExists(_) => Failure::BucketExists,
        RootRefusal::BucketBusy => Failure::BucketBusy,
        RootRefusal::NoSuchBucket => Failure::NoSuchBucket,
        // of this gateway, which the cluster does not know yet, or no longer: a session is not opened, nothing was proposed
        RootRefusal::NotBootstrapped
        | RootRefusal::NoSuchNode(_)
        | RootRefusal::StaleIncarnation { .. } => Failure::Unavailable(refusal.to_string()),
        RootRefusal::Bootstrapped
        | RootRefusal::BadToken
        | RootRefusal::StaleDisk(_)
        | RootRefusal::NoSuchDisk(_)
        | RootRefusal::StaleMap { .. }
        | RootRefusal::BadPlacement(_)
        | RootRefusal::NoSuchRange
        | RootRefusal::StaleGroup { .. }
        | RootRefusal::AlreadyMoving(_)
        | RootRefusal::BadDiskState { .. }
        | RootRefusal::StaleReplicaMove { .. }
        | RootRefusal::BadReplicas { .. }
        | RootRefusal::NodeInUse { .. }
        | RootRefusal::DiskInUse(_) => Failure::Internal(refusal.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::NodeId;

    /// A 500 would say that the outcome is unknown (C7), to a request that came while its gateway was starting.
    #[test]
    fn a_gateway_that_the_cluster_does_not_know_yet_has_applied_nothing() {
        let stale = RootRefusal::StaleIncarnation { node: NodeId(1), found: 2, known: 1 };
        for refusal in [stale, RootRefusal::NoSuchNode(NodeId(9))] {
            let told = translate(Client::Root(refusal));
            assert!(matches!(told, Failure::Unavailable(_)), "{told}");
        }
    }
}
