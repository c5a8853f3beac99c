// Package console is Mayfly's face: the pages at / where people look at what
// waits, what is granted and what was done, and sign with a passkey.
//
// Pages are rendered here, from templates that stand in the binary; nothing is
// fetched from elsewhere, and each works without a script, but for signing. A
// session is a cookie that no script can read, good for these pages alone, and
// every approval that it leads to is signed by a key that the cookie does not hold.
//
// Every name, purpose and reason is some requester's text and so hostile: it
// passes html/template, and what cannot be seen is spelt out ([Visible]).
//
// The package must know nothing of how the engine decides, of Raft, or of the
// API's operations beside it.
package console
