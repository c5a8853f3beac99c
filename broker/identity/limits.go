package identity

import "time"

// The bounds on everything that comes from outside, each with its reason.
const (
	// maxToken: identity tokens of large clouds with many groups stay below
	// 8 KiB, as headers must; twice that is no legitimate token.
	maxToken = 16 << 10
	// maxProof: a DPoP proof with a P-256 key and a long URL is about 800 bytes.
	maxProof = 4 << 10
	// maxClaimDepth and maxClaims: Kubernetes nests 3 deep, and a token with
	// 512 values is somebody's directory dump.
	maxClaimDepth = 8
	maxClaims     = 512
	// maxAudiences: Kubernetes allows several; nobody needs more than these.
	maxAudiences = 16
	// maxKeyID: SHA-256 in hex is 64; some issuers put a URL there.
	maxKeyID = 256
	// minProofID and maxProofID bound a proof's jti: below 8 characters it is
	// not unique (RFC 9449 §4.2 asks for 96 bits), above 128 it fills memory.
	minProofID, maxProofID = 8, 128
	// maxURL bounds an htu and a configured external URL.
	maxURL = 2048
	// maxNonce: ours have 22 characters; a follower's are forwarded unread.
	maxNonce = 128
	// maxTokenID bounds a JWT's jti and sub (OpenID Connect: sub ≤ 255).
	maxTokenID = 255

	// maxChain: a leaf, its root, and six intermediates.
	maxChain = 8
	// maxKeys and maxKeySet: the largest public issuers publish about 20 keys.
	maxKeys   = 100
	maxKeySet = 256 << 10
	// maxDiscovery: discovery documents are 1 to 6 KiB.
	maxDiscovery = 64 << 10

	// maxCode: codes are below 2 KiB where they are encrypted tokens.
	maxCode = 4 << 10
	// maxTokenAnswer holds an ID token, and an access and a refresh token of the
	// same size, which are thrown away.
	maxTokenAnswer = 64 << 10
	// maxScopes: openid, profile, email, groups, and as many of one's own.
	maxScopes = 16

	// maxSpec holds a method with a full key set and a CA bundle.
	maxSpec      = 768 << 10
	maxSpecDepth = 8
	maxSpecNodes = 20000
	maxCABundle  = 256 << 10
	maxCACerts   = 64
	maxRules     = 256
	maxCondition = 16 // conditions per rule
	maxPath      = 256
	maxProblems  = 20
	// maxPathDots bounds the ways to read a dotted claim path.
	maxPathDots = 8

	// maxFacts and maxFact bound what goes to policy and audit with each decision.
	maxFacts = 40
	maxFact  = 256
	// maxName bounds a principal's name after `kind:`.
	maxName = 128

	// maxAddresses and maxAddress bound what an enrolment token carries, so
	// that it stays pasteable.
	maxAddresses = 8
	maxAddress   = 255
	maxEnrolText = 4 << 10

	minRSABits = 2048
)

// Times.
const (
	// clockSkew is how far the issuer's clock may be from ours.
	clockSkew = 30 * time.Second
	// defaultSessionTTL is the session length where a method says nothing:
	// short, because continuous verification needs the evidence again.
	defaultSessionTTL = 15 * time.Minute
	maxSessionTTL     = 24 * time.Hour
	// maxOneShotLife bounds for how long the ledger must remember a token.
	maxOneShotLife = 24 * time.Hour
	// maxAssertionLife: a client that signs its own assertion needs no more.
	maxAssertionLife = 5 * time.Minute

	// keysFresh is how long fetched keys are used without asking again;
	// keysUsable is how long they serve while the issuer cannot be reached. A
	// key that an issuer withdrew is refused after keysFresh at the latest,
	// unless the issuer is down at that very time.
	keysFresh  = 10 * time.Minute
	keysUsable = time.Hour
	// refreshEvery is the least time between two fetches from one issuer,
	// whatever the number of tokens with unknown keys.
	refreshEvery = 30 * time.Second
	// fetchTimeout bounds discovery and keys together.
	fetchTimeout = 5 * time.Second
)
