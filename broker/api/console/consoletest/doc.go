// Package consoletest plays the broker for tests and pictures of the console: a
// day in a small company's life, and passkeys that are really checked.
//
// It must know nothing of pages.
package consoletest
