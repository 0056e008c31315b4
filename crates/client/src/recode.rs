//! Writing the content of an extent again under another code: what was written while too few homes lived, or in a
//! smaller cluster, gets the code that new content gets now.
//!
//! The copy is whole before anything is told of it: all homes of its group have acknowledged it, and it has the length
//! and the checksum of the record. Then one command puts it into the extent's place, or is refused because that has
//! been overwritten, deleted or repaired meanwhile; then the copy is garbage (D4, C1).

use crate::choose::profiles;
use crate::{Client, Failure};
use ashlar_types::{Extent, ExtentOwner, Profile, RangeOp, Recode, Refusal};

impl Client {
    /// The code that new content of this length gets while all homes live; `None`: there are no groups yet.
    pub fn wanted_profile(&self, length: u64) -> Option<Profile> {
        profiles(&self.0.map.load(), length).first().copied()
    }

    /// Gives an extent the code `profile`. `false`: it has ended or changed since it was seen so.
    pub async fn recode(
        &self,
        owner: ExtentOwner,
        extent: Extent,
        profile: Profile,
    ) -> Result<bool, Failure> {
        let at = owner.at().clone();
        let mut writer = self.writer(at.bucket, Some(extent.length)).await?;
        writer.copy_from(&extent, profile).await?;
        let (content, ticket) = writer.finish().await?;
        let op = RangeOp::Recode(Box::new(Recode { owner, extent, content }));
        match self.execute(Some(ticket), &at, op).await {
            Ok(_) => Ok(true),
            Err(Failure::Refused(Refusal::ExtentChanged)) => Ok(false),
            Err(failure) => Err(failure),
        }
    }
}
