package main

import "crypto/rand"

// randomWord returns n characters of a–z and 2–7: five random bits each.
func randomWord(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz234567"
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	for i := range b {
		b[i] = letters[b[i]&31]
	}
	return string(b)
}
