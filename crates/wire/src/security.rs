//! Who may speak on the internal port: mutual TLS under the cluster's own authority.
//!
//! The authority signs one certificate a node; its subject alternative names are [`INTERNAL_NAME`], by which a node
//! recognises a peer, and `node-<id>.ashlar.internal`, by which logs name it. A joining node has no certificate yet: it
//! knows the authority by the fingerprint in its token ([`JoinToken`]) and may call nothing but `Membership.Join`.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;

/// The name under which every node's certificate is issued.
pub const INTERNAL_NAME: &str = "ashlar.internal";

/// What went wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// A certificate or key could not be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// PEM that is none.
    #[error("PEM: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// TLS refused the material.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The verifier could not be built.
    #[error("TLS verifier: {0}")]
    Verifier(String),
    /// Text that is not a join token.
    #[error("this is not a join token: a member prints one with `ashlar token`")]
    BadToken,
}

/// A private key in PEM: never printed.
#[derive(Clone)]
pub struct KeyPem(String);

impl KeyPem {
    /// Wraps a key.
    pub fn new(pem: String) -> Self {
        Self(pem)
    }

    /// The key itself: to be written into a file of mode 0600, and nowhere else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPem(…)")
    }
}

/// The cluster's own certificate authority.
pub struct Authority {
    certificate_pem: String,
    key: KeyPem,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(…)")
    }
}

impl Authority {
    /// A new one.
    pub fn create() -> Result<Self, SecurityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ashlar cluster authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate_pem = params.self_signed(&key)?.pem();
        Self::load(certificate_pem, KeyPem(key.serialize_pem()))
    }

    /// One that was stored.
    pub fn load(certificate_pem: String, key: KeyPem) -> Result<Self, SecurityError> {
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, KeyPair::from_pem(key.reveal())?)?;
        Ok(Self { certificate_pem, key, issuer })
    }

    /// Its certificate, which every node has.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its key, which founders have.
    pub fn key(&self) -> &KeyPem {
        &self.key
    }

    /// A certificate and a fresh key for a node.
    pub fn issue(&self, node: &str) -> Result<Credentials, SecurityError> {
        let key = KeyPair::generate()?;
        let certificate = node_params(node)?.signed_by(&key, &self.issuer)?;
        Ok(Credentials {
            authority_pem: self.certificate_pem.clone(),
            certificate_pem: certificate.pem(),
            key: KeyPem(key.serialize_pem()),
        })
    }

    /// A certificate for the key of a signing request; the names it asks for are not believed.
    pub fn sign(&self, request_pem: &str, node: &str) -> Result<String, SecurityError> {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)?;
        request.params = node_params(node)?;
        Ok(request.signed_by(&self.issuer)?.pem())
    }

    /// What a join token names it by.
    pub fn fingerprint(&self) -> Result<[u8; 32], SecurityError> {
        let der = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())?;
        Ok(Sha256::digest(&der).into())
    }
}

fn node_params(node: &str) -> Result<CertificateParams, SecurityError> {
    let mut params =
        CertificateParams::new(vec![INTERNAL_NAME.to_owned(), format!("{node}.{INTERNAL_NAME}")])?;
    params.distinguished_name.push(DnType::CommonName, node);
    Ok(params)
}

/// A key of its own and the request to have it signed: what a joining node begins with.
pub fn signing_request() -> Result<(KeyPem, String), SecurityError> {
    let key = KeyPair::generate()?;
    let request =
        CertificateParams::new(vec![INTERNAL_NAME.to_owned()])?.serialize_request(&key)?;
    Ok((KeyPem(key.serialize_pem()), request.pem()?))
}

/// What a node proves itself with.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The authority's certificate.
    pub authority_pem: String,
    /// The node's certificate.
    pub certificate_pem: String,
    /// The node's key.
    pub key: KeyPem,
}

/// How the internal port is protected.
#[derive(Clone)]
pub enum Security {
    /// Not at all: for loopback only.
    Plain,
    /// Mutual TLS.
    Mutual {
        /// For connections made.
        client: Arc<ClientConfig>,
        /// For connections accepted.
        server: Arc<ServerConfig>,
    },
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "Plain",
            Self::Mutual { .. } => "Mutual",
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn private_key(pem: &KeyPem) -> Result<PrivateKeyDer<'static>, SecurityError> {
    Ok(PrivateKeyDer::from_pem_slice(pem.reveal().as_bytes())?)
}

impl Security {
    /// Mutual TLS with these credentials.
    pub fn mutual(credentials: &Credentials) -> Result<Self, SecurityError> {
        let authority = CertificateDer::from_pem_slice(credentials.authority_pem.as_bytes())?;
        let own = CertificateDer::from_pem_slice(credentials.certificate_pem.as_bytes())?;
        // the authority goes along, so that a joining node can check it against the fingerprint in its token
        let chain = vec![own, authority.clone()];
        let mut roots = RootCertStore::empty();
        roots.add(authority)?;
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| SecurityError::Verifier(error.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private_key(&credentials.key)?)?;
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private_key(&credentials.key)?)?;
        Ok(Self::Mutual { client: Arc::new(client), server: Arc::new(server) })
    }

    /// What a joining node dials with: no certificate of its own, the authority known by its fingerprint.
    pub fn joining(fingerprint: [u8; 32]) -> Result<Arc<ClientConfig>, SecurityError> {
        let verifier = Arc::new(FingerprintVerifier { fingerprint, provider: provider() });
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

/// Accepts a server whose chain ends in the authority with this fingerprint, and whose own certificate it signed.
#[derive(Debug)]
struct FingerprintVerifier {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let known =
            |der: &&CertificateDer<'_>| <[u8; 32]>::from(Sha256::digest(der)) == self.fingerprint;
        let authority = intermediates.iter().find(known).ok_or_else(|| {
            rustls::Error::General(
                "the member's authority is not the one that the join token names".to_owned(),
            )
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A one-time token: a secret, and the fingerprint by which the joining node knows the cluster's authority.
#[derive(Clone)]
pub struct JoinToken {
    /// Sixteen random bytes: the root keeps only their SHA-256.
    pub secret: [u8; 16],
    /// SHA-256 of the authority's certificate; zeroes where the internal port is plain.
    pub fingerprint: [u8; 32],
}

impl JoinToken {
    /// What the root knows it by.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// The text that an operator carries over.
    pub fn reveal(&self) -> String {
        format!("ashlar-join-{}{}", hex::encode(self.secret), hex::encode(self.fingerprint))
    }

    /// Reads what [`JoinToken::reveal`] wrote.
    pub fn parse(text: &str) -> Result<Self, SecurityError> {
        let digits = text.trim().strip_prefix("ashlar-join-").ok_or(SecurityError::BadToken)?;
        let mut bytes = [0; 48];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| SecurityError::BadToken)?;
        let (mut secret, mut fingerprint) = ([0; 16], [0; 32]);
        secret.copy_from_slice(&bytes[..16]);
        fingerprint.copy_from_slice(&bytes[16..]);
        Ok(Self { secret, fingerprint })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_and_are_not_printed() {
        let token = JoinToken { secret: [7; 16], fingerprint: [9; 32] };
        let back = JoinToken::parse(&token.reveal()).expect("well formed");
        assert_eq!((back.secret, back.fingerprint), (token.secret, token.fingerprint));
        assert!(JoinToken::parse("ashlar-join-00").is_err());
        assert_eq!(format!("{token:?}"), "JoinToken(…)");
    }

    #[test]
    fn an_authority_signs_requests_and_reloads() {
        let authority = Authority::create().expect("creates");
        let (key, request) = signing_request().expect("requests");
        let certificate_pem = authority.sign(&request, "node-7").expect("signs");
        let authority_pem = authority.certificate_pem().to_owned();
        Security::mutual(&Credentials { authority_pem, certificate_pem, key })
            .expect("is accepted");
        let again =
            Authority::load(authority.certificate_pem().to_owned(), authority.key().clone())
                .expect("loads");
        assert_eq!(again.fingerprint().expect("hashes"), authority.fingerprint().expect("hashes"));
        assert!(!format!("{:?}", authority.issue("node-1").expect("issues")).contains("PRIVATE"));
    }
}
