// Package program names the programs that kthwd runs in its process.
package program
