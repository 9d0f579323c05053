// Package attack attacks the real binary: each test is an attack that once succeeded
// and now fails. The attacks of one user of the machine on another need root.
package attack
